"All metadata comes from settings.ini, so that nbdev and pip read the same file."
import shlex
from configparser import ConfigParser
from pathlib import Path

import setuptools

cp = ConfigParser(delimiters=['='])
cp.read(Path(__file__).parent/'settings.ini', encoding='utf-8')
cfg = cp['DEFAULT']
words = lambda key: shlex.split(cfg.get(key, ''))

setuptools.setup(
    version=cfg['version'], description=cfg['description'], keywords=cfg['keywords'].split(),
    author=cfg['author'], author_email=cfg['author_email'],
    project_urls={'Repository': cfg['git_url'], 'Documentation': cfg['doc_host']+cfg['doc_baseurl']},
    packages=setuptools.find_packages(include=[cfg['lib_path'], cfg['lib_path']+'.*']), include_package_data=True,
    install_requires=words('requirements'), extras_require={k: words(f'{k}_requirements') for k in ('dev', 'dask', 'onnx', 'vq')},
    entry_points={'console_scripts': words('console_scripts'), 'nbdev': [f"{cfg['lib_path']}={cfg['lib_path']}._modidx:d"]})
